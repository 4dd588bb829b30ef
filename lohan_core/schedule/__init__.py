"""A step as data: the ordered tasks that carry a plan out, and the buffers that they take and give back."""
