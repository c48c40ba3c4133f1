"""The page that shows what was found: from directories of results to one HTML file, charts and tables."""
