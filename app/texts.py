"""Everything that a visitor reads on the page."""

from __future__ import annotations

NAME = "Image captioner"
TITLE = f"""# {NAME}
One sentence for a picture, and where the model looked for each of its words."""

PICTURE = "Picture"
CAPTION_IT = "Caption it"
EXAMPLES = "Or try one of these"
SETTINGS = "Settings"

CAPTION = "Caption"
PLACEHOLDER = "Choose a picture and press the button."
LOOKS = "Where it looked for each word"
CAPTIONS_HEAD, SCORE_HEAD = "All captions, best first", "Score"
FOUND = "score {score:.3f}, found in {seconds:.1f} s"
NO_ATTENTION = "; this model has no attention to show"

METHOD = "How to choose the words"
METHODS = {"search": "Search for the likeliest", "sample": "Draw at random"}

# The label of each number, and the line below it.
NUMBERS = {
    "beam_size": (
        "Beam size",
        "How many beginnings of a sentence are kept at each word; 1 is fastest.",
    ),
    "length_norm": (
        "Length normalisation",
        "Higher favours longer captions; at 0 short ones win.",
    ),
    "temperature": ("Temperature", "Below 1 is safer, above 1 bolder."),
    "top_p": ("Top-p", "Draw only from the likeliest words that together have this probability."),
    "max_words": ("Most words", "Longer captions are cut."),
    "captions": ("Captions to find", "A search finds at most as many as its beam size."),
}

HOW_TITLE = "How it works"
HOW = """
**Seeing.** A network that has seen millions of photographs turns yours into a coarse grid of
cells, and each cell into numbers that say what is there: fur, sky, a wheel.

**Writing.** A second network writes the sentence one word at a time. Before each word it decides
how much to look at each cell. Those are the pictures on this page: bright is where it looked.

**Choosing.** It does not write a single sentence. A *search* keeps the most promising beginnings
(the beam) and ends with the sentence it finds likeliest; a *random draw* throws dice at each
word, so it is livelier, sometimes wrong, and different each time.

**Learning.** Nobody gave it rules. It saw photographs with sentences people wrote about them, and
was corrected word by word. The training used *h-detach*: now and then the correction is kept from
flowing back through one of the two paths of the network's memory, so that what reaches far back
is not drowned by what happened a moment ago.

**Score.** How likely the model finds its own sentence: closer to 0 is surer. It says nothing about
whether the sentence is true, and is only to be compared between captions of one picture.
"""

LIMITS_TITLE = "What it cannot do"
LIMITS = """
- It knows {words:,} words. What it has no word for, it calls something else.
- It repeats what its training photographs showed: people, animals, sport, streets and food come
  easily; drawings, screenshots, text and close-ups do not. Numbers and colours are often wrong.
- It guesses who people are and what they do from looks, with the prejudices of its examples.
  Do not use it to decide anything about anybody.
- It sees a small square copy of the picture, so small things disappear.
- The bright spots tell where it looked, not why it chose the word.

The picture stays on the machine that runs this page and is deleted from it after an hour or two.
"""

API_TITLE = "Use it from a program"
API = """
From a program, with Python (`pip install gradio_client`):
```python
from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
answer = client.predict(handle_file("photo.jpg"), beam_size=5, api_name="/caption")
print(answer["caption"], answer["score"])
```
or with curl: send the picture, ask, fetch the answer.
```bash
URL=http://127.0.0.1:7860/gradio_api
FILE=$(curl -s -F files=@photo.jpg $URL/upload | cut -d '"' -f 2)
ASK='{"picture": {"path": "'$FILE'", "meta": {"_type": "gradio.FileData"}}, "beam_size": 5}'
ID=$(curl -s -H content-type:application/json -d "$ASK" $URL/call/v2/caption | cut -d '"' -f 4)
curl -sN $URL/call/caption/$ID
```
The answer is `{"caption": ..., "words": [...], "score": ..., "alternatives": [{"caption": ...,
"score": ...}, ...]}`. Other settings: `max_words`, `length_norm`, `sample`, `temperature`, `top_p`,
`captions` (how many to find) and `seed`, all optional.
"""
