"""What each kind of backend promises, and what it is opened with."""
