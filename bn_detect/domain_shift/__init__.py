"""How far statistics of the target domain repair a shift: tools/domain_shift.py."""
