"""Reports: plain data in, one self-contained HTML file out."""

from memfold.report.html import render, write
from memfold.report.model import Report, load

__all__ = ["Report", "load", "render", "write"]
