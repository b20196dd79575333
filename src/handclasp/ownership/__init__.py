"""Who owns an identity: owners, the rules that derive them, and the people who confirm.

Every assignment says which evidence it comes from, by which rule, how sure that is and since when; the order of evidence decides between
them, and where two of the same rank disagree, that is shown and not hidden.
"""
