"""The companion swap: which companions there are, the readings, the report and its verdict."""
