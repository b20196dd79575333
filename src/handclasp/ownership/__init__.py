"""Who owns an identity: owners, the rules that derive them, and the people who confirm.

    rules, patterns, nearest   pure: evidence in, whoever owns it out, with what speaks for others; names that are nearly an owner's
    document, book             the rules as a file, and the ones in force
    directories, catalogue     pure: what CSV, Backstage, CODEOWNERS and JSON say of owners, and of components and paths
    owners                     owners as rows, imported or made by hand; ``names`` is what they may be called
    due, gather, assign        what is to be derived again, the evidence for it, and the writes that come of it
    people                     what people say: assignments, and confirmations by link
    views, shown               what is read: owners, everything that says whose an identity is, what needs a person
    room                       all of it together

Every assignment says which evidence it comes from, by which rule, how sure that is and since when; the order of evidence decides between
them, and where two of the same rank disagree, that is shown and not hidden.
"""
