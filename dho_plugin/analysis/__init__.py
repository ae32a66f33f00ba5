"""What is measured of a run beside its accuracy, and how it is drawn."""
