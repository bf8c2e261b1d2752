"""Who fits, in which order and how many, asked of a hundred thousand devices: sets of slots that follow each commit.

Pure: no database, no clock. What a device says is looked up by whoever shows it, for the rows of one page.
"""
