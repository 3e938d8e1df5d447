"""What the sub-commands of `tmerge` do; cli.py holds their options."""
