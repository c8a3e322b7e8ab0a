"""What the paper's models have reached, in per cent, to be printed beside one's own: Table 3, and rows of single tasks.

Those of TriviaQA and NaturalQuestions are with one example. Math is the mean of GSM8K and MATH, in whose place Table 3
prints GSM8K's alone for the two smaller models.
"""

from collections.abc import Mapping

MODELS = ("7B", "13B", "34B", "70B")

LLAMA_2: Mapping[str, tuple[float | None, ...]] = {  # in the order of MODELS
    "Code": (16.8, 24.5, 27.8, 37.5),
    "Commonsense Reasoning": (63.9, 66.9, 69.9, 71.9),
    "World Knowledge": (48.9, 55.4, 58.7, 63.6),
    "Reading Comprehension": (61.3, 65.8, 68.0, 69.4),
    "Math": (8.55, 16.3, 24.2, 35.2),
    "mmlu": (45.3, 54.8, 62.6, 68.9),
    "bbh": (32.6, 39.4, 44.1, 51.2),
    "agieval": (29.3, 39.1, 43.4, 54.2),
    "humaneval": (12.8, 18.3, None, 29.9),
    "hellaswag": (77.2, 80.7, None, 85.3),
    "winogrande": (69.2, 72.8, None, 80.2),
    "openbookqa": (58.6, 57.0, None, 60.2),
    "nq": (22.7, 28.0, None, 33.0),
    "triviaqa": (68.9, 77.2, None, 85.0),
    "boolq": (77.4, 81.7, None, 85.0),
    "gsm8k": (14.6, 28.7, None, 56.8),
}
