"""Reports: plain data in, one self-contained HTML file out."""
