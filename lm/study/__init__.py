"""Studies: a declaration becomes runs, and runs become verdicts."""
