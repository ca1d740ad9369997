"""What the language models make of concepts: where they predict each, whether rightly, and to what effect."""
