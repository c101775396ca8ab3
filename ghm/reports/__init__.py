"""What a sweep found: tables, figures and one page, from what the tracker holds."""
