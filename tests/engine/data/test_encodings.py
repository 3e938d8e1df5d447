"""Files in other encodings than UTF-8. Reference: Python's own codecs, which wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmerge_tui.engine.data.text_files import read_file

MARKED = ("utf-8-sig", "utf-16", "utf-32")
WRITTEN = [
    ("utf-16", "größe über alles"),
    ("utf-16-le", "größe über alles, und mehr"),
    ("utf-16-be", "größe über alles, und mehr"),
    ("utf-16-le", "plain words of English"),  # valid UTF-8, with zeros between
    ("utf-16-be", "plain words of English"),
    ("utf-16-le", "今天天气很好，我们去公园散步吧。"),
    ("utf-16-be", "สวัสดีชาวโลก วันนี้อากาศดี"),
    ("utf-32", "größe"),
    ("utf-8-sig", "größe"),
    ("iso2022_jp", "東京の空は青い。"),
    ("shift_jis", "東京の空は青い。とても良い天気です。"),
    ("euc_jp", "東京の空は青い。とても良い天気です。"),
    ("gb18030", "今天天气很好，我们去公园散步吧。"),
    ("big5", "今天天氣很好，我們去公園散步吧。"),
    ("euc_kr", "오늘은 날씨가 매우 좋습니다."),
    ("cp874", "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน"),
    ("cp1251", "Привет, мир! Это обычный русский текст, который написан для проверки."),
    ("cp1251", "Всі люди народжуються вільними і рівними у своїй гідності та правах."),
    ("koi8_r", "Это обычный русский текст для проверки. Все люди рождаются свободными."),
    ("cp1253", "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια."),
    ("cp1254", "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdan."),
    ("cp1255", "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם."),
    ("cp1256", "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق."),
    ("cp1257", "Visi žmonės gimsta laisvi ir lygūs savo orumu ir teisėmis. Jiems suteiktas protas."),
    ("cp1252", "Die Straße über den Fluß führt nach Süden, und „mehr“ – für 5 €"),
    ("cp1252", "Le garçon naïf a mangé une crêpe à l’hôtel près du château, où l’été était déjà là."),
    ("cp1252", "A ação não é fácil: coração, irmãos, avó e pão estão na mesa."),
    ("cp1252", "El niño comió mañana en el jardín; ¿qué pasó después? ¡Increíble!"),
    ("cp1252", "Perché la città è così bella? Già da lunedì sarà più difficile, però è vero."),
    ("cp1252", "Það er gott að búa á Íslandi þó að veðrið sé oft slæmt."),
    ("cp1252", "The price is £4 today, and it’s “naïve” – nothing more about it was said there."),
    ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Žádné štěstí netrvá věčně."),
    ("cp1250", "Zażółć gęślą jaźń. Wszyscy ludzie rodzą się wolni i równi."),
    ("cp1250", "Árvíztűrő tükörfúrógép. Minden emberi lény szabadon születik és egyenlő."),
    ("iso8859_2", "Příliš žluťoučký kůň úpěl ďábelské ódy. Žádné štěstí netrvá věčně."),
]


@pytest.mark.parametrize(("encoding", "text"), WRITTEN)
def test_a_file_is_read_as_it_was_written(tmp_path: Path, encoding: str, text: str) -> None:
    texts = tuple(f"{i} {text}" for i in range(30))
    quoted = (value.replace('"', '""') for value in texts)
    for name, content in (("a.txt", "\n".join(texts)), ("a.csv", "text\n" + "\n".join(f'"{text}"' for text in quoted))):
        path = tmp_path / name
        path.write_bytes(content.encode(encoding))
        found = read_file(path, None)
        assert found.values == texts
        assert any("was found by its content" in told for told in found.warnings) == (encoding not in MARKED)


def test_utf8_with_a_few_broken_bytes_stays_utf8(tmp_path: Path) -> None:
    whole = "\n".join(f"สวัสดีชาวโลก {i}" for i in range(50)).encode()
    path = tmp_path / "a.txt"
    path.write_bytes(whole + b"\n\xe0\xb8 broken\n")
    found = read_file(path, None)
    assert found.values[:50] == tuple(whole.decode().split("\n")) and found.values[50] == "\ufffd broken"
    assert [told.split(": ")[1] for told in found.warnings] == ["1 characters are broken"]


def test_marks_of_files_that_were_joined_go(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert read_file(path, None).values == ("one", "two")
