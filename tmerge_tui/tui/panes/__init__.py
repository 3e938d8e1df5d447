"""What the result screen shows, a file a pane: each draws its part of report.json and is there when the part is."""
