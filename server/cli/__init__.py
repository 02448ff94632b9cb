"""The command `fourstep`. Read main, then arguments; one module for each group of commands."""
