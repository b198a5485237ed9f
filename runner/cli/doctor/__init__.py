"""`runner doctor`: checks of the run records, and their repair. A check is a function listed in `command.CHECKS`."""
