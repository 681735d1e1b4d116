"""Side-by-side measurements: what a competent user would write without this project, and ours."""
