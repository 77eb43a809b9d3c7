"""Responses to IFEval's prompts: many that follow what is asked, and many that nearly do."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LANGUAGES = {
    "ar": "كان الأطفال يلعبون على الشاطئ بينما كانت السفينة الصغيرة تبحر بهدوء نحو الجزيرة البعيدة.",
    "bg": "Малката лодка плаваше спокойно по езерото, докато децата гледаха от брега и се смееха.",
    "bn": "ছোট নৌকাটি হ্রদের উপর দিয়ে ধীরে ধীরে চলছিল এবং শিশুরা তীর থেকে দেখছিল।",
    "de": "Das kleine Boot segelte ruhig über den See, während die Kinder am Ufer standen und ihm nachsahen.",
    "fa": "قایق کوچک آرام روی دریاچه حرکت می‌کرد و بچه‌ها از ساحل آن را تماشا می‌کردند.",
    "fi": "Pieni vene purjehti hiljaa järven yli, kun lapset katselivat sitä rannalta ja nauroivat.",
    "gu": "નાની હોડી તળાવ પર ધીમે ધીમે ચાલતી હતી અને બાળકો કિનારેથી જોઈ રહ્યા હતા.",
    "hi": "छोटी नाव झील पर धीरे-धीरे चल रही थी और बच्चे किनारे से उसे देख रहे थे।",
    "it": "La piccola barca navigava tranquilla sul lago mentre i bambini la guardavano dalla riva.",
    "kn": "ಚಿಕ್ಕ ದೋಣಿ ಸರೋವರದ ಮೇಲೆ ನಿಧಾನವಾಗಿ ಸಾಗುತ್ತಿತ್ತು ಮತ್ತು ಮಕ್ಕಳು ದಡದಿಂದ ನೋಡುತ್ತಿದ್ದರು.",
    "ko": "아이들이 물가에서 지켜보는 동안 작은 배가 호수 위를 조용히 지나갔습니다.",
    "mr": "लहान होडी तलावावर हळूहळू चालत होती आणि मुले काठावरून तिच्याकडे पाहत होती.",
    "ne": "सानो डुङ्गा तालमा बिस्तारै हिँडिरहेको थियो र केटाकेटीहरू किनारबाट हेरिरहेका थिए।",
    "pa": "ਛੋਟੀ ਕਿਸ਼ਤੀ ਝੀਲ ਉੱਤੇ ਹੌਲੀ ਹੌਲੀ ਚੱਲ ਰਹੀ ਸੀ ਅਤੇ ਬੱਚੇ ਕੰਢੇ ਤੋਂ ਵੇਖ ਰਹੇ ਸਨ।",
    "pt": "O pequeno barco navegava tranquilamente pelo lago enquanto as crianças o olhavam da margem.",
    "ru": "Маленькая лодка тихо плыла по озеру, а дети смотрели на неё с берега и смеялись.",
    "sw": "Mashua ndogo ilisafiri polepole juu ya ziwa wakati watoto walikuwa wakiangalia kutoka ufukweni.",
    "ta": "சிறிய படகு ஏரியின் மீது மெதுவாகச் சென்றது, குழந்தைகள் கரையிலிருந்து பார்த்துக்கொண்டிருந்தனர்.",
    "te": "చిన్న పడవ సరస్సుపై నెమ్మదిగా సాగుతుండగా పిల్లలు ఒడ్డు నుండి చూస్తున్నారు.",
    "th": "เรือลำเล็กแล่นไปบนทะเลสาบอย่างเงียบ ๆ ขณะที่เด็ก ๆ มองดูจากริมฝั่ง",
    "ur": "چھوٹی کشتی جھیل پر آہستہ آہستہ چل رہی تھی اور بچے کنارے سے دیکھ رہے تھے۔",
    "vi": "Chiếc thuyền nhỏ lặng lẽ trôi trên mặt hồ trong khi bọn trẻ đứng trên bờ nhìn theo.",
}


def responses(row: Mapping[str, Any], sentences: Sequence[str], seed: int) -> Iterator[str]:
    """Yields one response that follows the instructions where it can, and four that stray from it."""
    rng = random.Random(f"{seed}/{row['key']}")
    good = _obedient(row, sentences, rng)
    yield good
    yield f"Sure! Here is what you asked for:\n\n{good}\n\nI hope that this helps, **really**."
    yield f"Sure:\n{good}" if rng.random() < 0.5 else f"**{good}**\nBye!"
    yield _damaged(good, rng)
    yield _unrelated(row, sentences, rng)


def _obedient(row: Mapping[str, Any], sentences: Sequence[str], rng: random.Random) -> str:
    asked = dict(zip(row["instruction_id_list"], row["kwargs"], strict=True))
    text = " ".join(_sentences_for(asked, sentences, rng))
    if given := asked.get("keywords:existence"):
        text += " So: " + " and ".join(given["keywords"]) + "."
    if given := asked.get("keywords:forbidden_words"):
        for word in given["forbidden_words"]:
            text = text.replace(word, "it").replace(word.capitalize(), "It")
    for name, word, count, relation in (
        ("keywords:frequency", "keyword", "frequency", "relation"),
        ("keywords:letter_frequency", "letter", "let_frequency", "let_relation"),
    ):
        given = asked.get(name)
        if given and given[relation] == "at least":
            text += " " + " ".join([given[word]] * given[count]) + "."
        elif given:
            text = text.replace(given[word], "")
    given = asked.get("change_case:capital_word_frequency")
    if given and given["capital_relation"] == "at least":
        text += " " + " NASA" * given["capital_frequency"] + "."
    return _dressed(_parted(text, asked, sentences, rng), asked)


def _sentences_for(asked: Mapping[str, Any], sentences: Sequence[str], rng: random.Random) -> list[str]:
    if given := asked.get("language:response_language"):
        return [LANGUAGES[given["language"]]] * 3
    chosen = [rng.choice(sentences)]
    least = asked.get("length_constraints:number_sentences", {})
    words = asked.get("length_constraints:number_words", {})
    while least.get("relation") == "at least" and len(chosen) < least["num_sentences"] + 1:
        chosen.append(rng.choice(sentences))
    while words.get("relation") == "at least" and len(" ".join(chosen).split()) < words["num_words"]:
        chosen.append(rng.choice(sentences))
    return chosen


def _parted(text: str, asked: Mapping[str, Any], sentences: Sequence[str], rng: random.Random) -> str:
    """Adds what divides a response or stands in it."""
    if given := asked.get("length_constraints:number_paragraphs"):
        text = "\n***\n".join([text, *(rng.choice(sentences) for _ in range(given["num_paragraphs"] - 1))])
    if given := asked.get("length_constraints:nth_paragraph_first_word"):
        parts = [text, *(rng.choice(sentences) for _ in range(given["num_paragraphs"] - 1))]
        place = given["nth_paragraph"] - 1
        parts[place] = f"{given['first_word'].capitalize()}{rng.choice([' ', ': ', ', '])}{parts[place]}"
        text = "\n\n".join(parts)
    if given := asked.get("detectable_format:multiple_sections"):
        marks = range(1, given["num_sections"] + 1)
        text = "\n".join(f"{given['section_spliter']} {mark}\n{rng.choice(sentences)}" for mark in marks)
    if given := asked.get("detectable_content:number_placeholders"):
        text += " Write to " + " ".join(f"[name {place}]" for place in range(given["num_placeholders"])) + "."
    if given := asked.get("detectable_format:number_highlighted_sections"):
        star = rng.choice(["*", "**", "***"])
        text += "\n" + "\n".join(f"{star}point {place}{star} of it" for place in range(given["num_highlights"]))
    if given := asked.get("detectable_format:number_bullet_lists"):
        rule = rng.choice(["", "\n---"])
        text += rule + "".join(f"\n{rng.choice('*-')} item {place}" for place in range(given["num_bullets"])) + "\n"
    if "detectable_format:constrained_response" in asked:
        text = rng.choice(["My answer is yes.", "My answer is no.", "My answer is maybe."])
    if "combination:two_responses" in asked:
        text = f"{text}\n******\n{rng.choice(sentences)}"
    return text


def _dressed(text: str, asked: Mapping[str, Any]) -> str:
    """Adds what begins, ends or covers a response."""
    if "detectable_format:title" in asked:
        text = f"<<A title>>\n\n{text}"
    if given := asked.get("detectable_content:postscript"):
        text += f"\n\n{given['postscript_marker']} One more thing."
    if given := asked.get("combination:repeat_prompt"):
        text = f"{given['prompt_to_repeat']}\n\n{text}"
    if given := asked.get("startend:end_checker"):
        text += f"\n{given['end_phrase']}"
    if "punctuation:no_comma" in asked:
        text = text.replace(",", "")
    if "change_case:english_capital" in asked:
        text = text.upper()
    if "change_case:english_lowercase" in asked:
        text = text.lower()
    if "detectable_format:json_format" in asked:
        text = f"```json\n{json.dumps({'text': text}, ensure_ascii=False)}\n```"
    return f'"{text}"' if "startend:quotation" in asked else text


def _damaged(text: str, rng: random.Random) -> str:
    """Takes something away, doubles it or changes its case."""
    cut = rng.randrange(len(text) + 1)
    return rng.choice(
        [text[:cut], text[cut:], text.swapcase(), text.replace(" ", ", "), text + "\n" + text, text.replace("\n", ""),
         f"{text[:cut]}\n\n\n\n- {text[cut:]}", text.replace(".", ""), text.title(), text[:cut].upper() + text[cut:]]
    )  # fmt: skip


def _unrelated(row: Mapping[str, Any], sentences: Sequence[str], rng: random.Random) -> str:
    foreign = LANGUAGES[rng.choice(sorted(LANGUAGES))]
    made = [rng.choice(sentences), foreign, row["prompt"], "", "123 456.", json.dumps({"a": [1, None]}), "[" * 300,
            "* one\n* two\n- [three]\n\n***\n\n2 * 3 * 4", rng.choice(sentences).upper(), "My answer is no.",
            f"{foreign}\n\n{rng.choice(sentences)}", "\n\n\n", '"', "P.S. p.p.s. P. S.", "<<>>\n<<a>>"]  # fmt: skip
    return "\n".join(rng.sample(made, rng.randint(1, 3)))
