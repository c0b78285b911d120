"""What a run leaves behind: summary, tables and the report page."""
