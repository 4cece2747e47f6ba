//! Images on disk: from a name to a stack of layer directories. Called by the cli.
