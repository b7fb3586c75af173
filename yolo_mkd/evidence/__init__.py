"""Does distillation help, and what does it cost? Before a run (plan), on this machine (cost), after it (compare)."""
