"""What the paper's models have reached, in per cent, to be printed beside one's own: Table 3, and rows of single tasks.

Those of TriviaQA and NaturalQuestions are with five examples, as in Table 3. Math is the mean of GSM8K and MATH, in
whose place Table 3 prints GSM8K's alone for the two smaller models.
"""

from collections.abc import Mapping

MODELS = ("7B", "13B", "34B", "70B")

LLAMA_2: Mapping[str, tuple[float, ...]] = {  # in the order of MODELS
    "Code": (16.8, 24.5, 27.8, 37.5),
    "Commonsense Reasoning": (63.9, 66.9, 69.9, 71.9),
    "World Knowledge": (48.9, 55.4, 58.7, 63.6),
    "Reading Comprehension": (61.3, 65.8, 68.0, 69.4),
    "Math": (8.55, 16.3, 24.2, 35.2),
    "mmlu": (45.3, 54.8, 62.6, 68.9),
    "bbh": (32.6, 39.4, 44.1, 51.2),
    "agieval": (29.3, 39.1, 43.4, 54.2),
    "humaneval": (12.8, 18.3, 22.6, 29.9),
    "mbpp": (20.8, 30.6, 33.0, 45.0),
    "piqa": (78.8, 80.5, 81.9, 82.8),
    "siqa": (48.3, 50.3, 50.9, 50.7),
    "hellaswag": (77.2, 80.7, 83.3, 85.3),
    "winogrande": (69.2, 72.8, 76.7, 80.2),
    "arc-easy": (75.2, 77.3, 79.4, 80.2),
    "arc-challenge": (45.9, 49.4, 54.5, 57.4),
    "openbookqa": (58.6, 57.0, 58.2, 60.2),
    "commonsenseqa": (57.8, 67.3, 74.3, 78.5),
    "nq": (25.7, 31.2, 32.8, 39.5),
    "triviaqa": (72.1, 79.6, 84.5, 87.6),
    "boolq": (77.4, 81.7, 83.7, 85.0),
    "gsm8k": (14.6, 28.7, 42.2, 56.8),
    "math": (2.5, 3.9, 6.24, 13.5),
}
