"""The two kinds of failure that a person meets: a mistake of theirs, and a machine that let us down."""


class UserError(Exception):
    """A mistake in what the user gave us: one sentence that names the field, the value and the mend (exit code 2)."""


class InfrastructureError(Exception):
    """A crash of an engine, worker or node that outlived its retries; the run resumes where it stopped (exit code 1)."""
