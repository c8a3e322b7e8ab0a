"""Which language a text is in, by py3langid's identifier, and what languages are called in English."""

from functools import cache
from typing import Any

SHORTEST = 20  # characters of a text that has a language
SURE = 0.5  # probability from which on a language counts; what is below is unknown (paper, Table 10)
UNKNOWN = "unknown"

# By the names that people call them: ISO 639 codes, of those that the identifier knows.
NAMED = {
    "afrikaans": "af", "albanian": "sq", "amharic": "am", "arabic": "ar", "armenian": "hy", "azerbaijani": "az",
    "basque": "eu", "belarusian": "be", "bengali": "bn", "bosnian": "bs", "breton": "br", "bulgarian": "bg",
    "burmese": "my", "cantonese": "yue", "catalan": "ca", "chinese": "zh", "croatian": "hr", "czech": "cs",
    "danish": "da", "dutch": "nl", "english": "en", "esperanto": "eo", "estonian": "et", "farsi": "fa",
    "finnish": "fi", "french": "fr", "galician": "gl", "georgian": "ka", "german": "de", "greek": "el",
    "gujarati": "gu", "haitian creole": "ht", "hausa": "ha", "hebrew": "he", "hindi": "hi", "hungarian": "hu",
    "icelandic": "is", "igbo": "ig", "indonesian": "id", "irish": "ga", "italian": "it", "japanese": "ja",
    "javanese": "jv", "kannada": "kn", "kazakh": "kk", "khmer": "km", "korean": "ko", "kurdish": "ku",
    "kyrgyz": "ky", "lao": "lo", "latin": "la", "latvian": "lv", "lithuanian": "lt", "luxembourgish": "lb",
    "macedonian": "mk", "malagasy": "mg", "malay": "ms", "malayalam": "ml", "maltese": "mt", "mandarin": "zh",
    "mandarin chinese": "zh", "marathi": "mr", "mongolian": "mn", "nepali": "ne", "norwegian": "no", "occitan": "oc",
    "pashto": "ps", "persian": "fa", "polish": "pl", "portuguese": "pt", "punjabi": "pa", "quechua": "qu",
    "romanian": "ro", "russian": "ru", "sanskrit": "sa", "serbian": "sr", "sinhala": "si", "slovak": "sk",
    "slovenian": "sl", "somali": "so", "spanish": "es", "swahili": "sw", "swedish": "sv", "tagalog": "tl",
    "tajik": "tg", "tamil": "ta", "tatar": "tt", "telugu": "te", "thai": "th", "turkish": "tr",
    "turkmen": "tk", "ukrainian": "uk", "urdu": "ur", "uyghur": "ug", "uzbek": "uz", "vietnamese": "vi", "welsh": "cy",
    "xhosa": "xh", "yoruba": "yo", "zulu": "zu",
}  # fmt: skip


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def told(text: str) -> str:
    """The code of a text's language; ``UNKNOWN`` where the identifier is not sure.

    What is shorter than ``SHORTEST`` has none that can be told: that is for the caller to look at.
    """
    code, probability = _identifier().classify(text)
    return str(code) if probability >= SURE else UNKNOWN


def code(name: str) -> str | None:
    """The code of a language by its English name, or by its code; None where the identifier does not know it."""
    spelled = " ".join(name.casefold().split())
    found = NAMED.get(spelled, spelled)
    return found if found in _identifier().labels else None
