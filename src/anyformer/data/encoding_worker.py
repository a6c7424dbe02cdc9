"""A process that encodes texts. It is run as a file, and imports nothing of anyformer, so that it starts at once.

It reads requests from standard input and writes results to standard output until the input ends; it thus ends with the
process that started it, however that ends. All are pickled, by and for processes of the same program:

    first      (sys.path, the tokenizer as JSON, the typecode of ids)
    request    [text, ...]
    result     (lengths, ids) as the bytes of an array of uint32 and of one of that typecode, or a string: what is wrong
"""

import os
import pickle
import sys
from array import array
from typing import Literal


def main() -> None:
    """Serve requests until the input ends."""
    requests, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not come between the results
    greeting: tuple[list[str], str, Literal["H", "I"]] = pickle.load(requests)
    path, pipeline, typecode = greeting
    sys.path[:] = path
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(pipeline)
    while True:
        try:
            texts: list[str] = pickle.load(requests)
        except EOFError:
            return
        result: tuple[bytes, bytes] | str
        try:
            lengths, ids = array("I"), array(typecode)
            for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
                own = encoding.ids
                lengths.append(len(own))
                ids.extend(own)
            result = lengths.tobytes(), ids.tobytes()
        except Exception as error:
            result = str(error) or type(error).__name__
        pickle.dump(result, results, protocol=pickle.HIGHEST_PROTOCOL)
        results.flush()


if __name__ == "__main__":
    try:
        main()
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        # The program that sent it is gone, in the middle of it. Nobody is there to tell, nor to flush anything for.
        os._exit(1)
