"""Language models' predictions of concepts: where, how accurate, and with what effect."""
