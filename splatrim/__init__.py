"""The command line of the project: `splatrim train`, `splatrim render`, ..."""
