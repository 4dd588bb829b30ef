"""Planners that decide by integer linear programs, solved by HiGHS."""
