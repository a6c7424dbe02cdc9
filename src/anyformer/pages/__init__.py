"""Templates, styles, charts and formats of offline pages.

render       templates into pages
formatting   numbers and settings as text
*.html, style.css, charts.js   layout, parts, style and charts

A page is one file that asks nothing of a network: style, script and numbers are in it. Every text comes from outside (a
sample, a path, a name) and is escaped by Jinja; a policy in the page forbids it to load anything.
"""
