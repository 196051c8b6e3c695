"""The decoder, its heads, and its way from and to Hugging Face folders."""
