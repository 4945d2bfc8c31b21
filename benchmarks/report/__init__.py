"""pgsr-bench report: the measurements as one page, one JSON file and one Markdown file."""
