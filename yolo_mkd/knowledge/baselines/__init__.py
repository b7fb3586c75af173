"""Published strategies of others, each by its own definition, to be measured against M-KD's terms on equal footing.

The published weights stand in the docstrings and are not applied, except inside a strategy's own sum of parts.
"""
