"""Storage backend `aio`: extents striped over files in several directories, through io_uring, libaio or threads."""
