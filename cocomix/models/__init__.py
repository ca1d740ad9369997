"""What this repository does with a CoCoMix model, and a saved model does not carry along."""
