"""Flags, messages, exit codes and child processes of the programs."""
