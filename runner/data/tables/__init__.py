"""Images and labels from tables: CSV, Parquet, saved Hugging Face datasets."""
