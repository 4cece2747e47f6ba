"""Writes a generated part of a page, between two lines that mark it."""


def publish(page, begin, end, text):
    before, rest = page.read_text().split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
