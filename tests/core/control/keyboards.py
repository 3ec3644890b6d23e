"""Block lists as other keyboards write them, for the tests of both parsers."""

from __future__ import annotations

# A text of another keyboard, or with spaces -> the same in plain signs.
KEYBOARDS = {
    "4，5": "4,5", "4、5": "4,5", "4；5": "4;5", "4;5": "4;5", "４，５": "4,5", "٤,٥": "4,5",
    "0－3": "0-3", "0–3": "0-3", "0—3": "0-3", "0——3": "0-3", "0−3": "0-3", "1~3": "1-3", "1～3": "1-3", "1〜3": "1-3",
    "4 5": "4, 5", "4\u30005": "4, 5", "4\t5  7": "4, 5, 7", "0 - 3 5": "0 - 3, 5", "12- 14": "12- 14",
    "0-3 7": "0-3, 7",
    "3：1.5": "3:1.5", "3:1.5 4:2": "3:1.5, 4:2", "！3": "!3", "!3 !4": "!3, !4", "0-5 !3": "0-5, !3",
    "first 25％": "first 25%", "ｆｉｒｓｔ　２５％": "first 25%", "first 25 %": "first 25 %", "ａｌｌ": "all",
}  # fmt: skip

# A space in these may mean two things, or the text is wrong in any signs.
REFUSED = ("first 3", "last 25", "middle 5 6", "!3 4", "!3 d4", "25％", "1.5 2", "4 frog")
