"""Ids of the special tokens; they are the same in every vocabulary."""

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
UNWRITTEN = [PAD, BOS, UNK]  # never part of a caption; EOS is never its first token
