"""The end of a process, for tests of what goes on after one."""


class Killed(BaseException):
    """Stands for the end of the process."""
