"""Imported by Python at its start in each process that has this folder in PYTHONPATH, so also in a trial's process."""

import faults

faults.install()
