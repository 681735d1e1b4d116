"""Masks and spacing in, numbers out; the empty-region rule lives here.

The empty-region rule: where prediction and reference are both empty, Dice is 1 and a distance 0 mm;
where only one of them is, Dice is 0 and a distance 373.13 mm, the diagonal of the BraTS grid. No
case is ever dropped from a mean: a missed tumour must not improve a score.
"""
