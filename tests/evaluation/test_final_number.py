"""The final number of an answer in words."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.evaluation.judging.comparison import numeric_answer, same_answer
from ssd_ray.problems.benchmarks.gsm8k import gold_number

READ = {
    # units and their exponents
    r"\boxed{36 \text{ m}^2}": "36",
    r"\boxed{36\text{ m}^{2}}": "36",
    r"\boxed{36\ \mathrm{m}^2}": "36",
    r"\boxed{36\,\mathrm{m^2}}": "36",
    r"\boxed{36~\text{m$^2$}}": "36",
    r"\boxed{36 \text{ m2}}": "36",
    r"\boxed{36m^{2}}": "36",
    r"\boxed{36 \textbf{ cm}^3 \text{ of } 2 \text{ kinds}}": "2",
    "The room is 36 m\u00b2 (4 m \u00d7 9 m = 36 m^2).": "36",
    "The room has 36 m2": "36",
    "That is 36 square meters.": "36",
    "at 5 m/s^2": "5",
    "at 5 m s^{-2}": "5",
    "at 5 m\u00b7s\u207b\u00b2": "5",
    r"\boxed{45\text{ min}}": "45",
    "45min": "45",
    r"45^\circ": "45",
    r"45^{\circ}": "45",
    "45\u00b0": "45",
    r"\boxed{60\,\text{km/h}}": "60",
    r"\boxed{\text{36 apples}}": "36",
    r"\boxed{\text{(B)}\ 36}": "36",
    r"\boxed{36\ \text{apples for 2 people}}": "36",
    # percent and currency
    r"\boxed{50\%}": "50",
    "about 50%": "50",
    "50 percent": "50",
    r"\boxed{\$36.00}": "36",
    r"$\$36$": "36",
    "\u20ac1,234.50": "1234.50",
    "18 dollars": "18",
    "Rs500": "500",
    "USD 18": "18",
    "-$7": "-7",
    r"-\$7": "-7",
    # separators
    "#### 1,234": "1234",
    r"\boxed{1{,}234\,567}": "1234567",
    "1\u202f234\u202f567": "1234567",
    "1_000_000": "1000000",
    "$118 000 of $2 500 000, less 1 000 000 000": "1000000000",
    "100 200 300": "300",
    "1, 2, 3": "3",
    # signs
    r"\boxed{-5}": "-5",
    r"\boxed{- 5}": "-5",
    "\u22127": "-7",
    "($-7$)": "-7",
    "what is 10 - 4": "4",
    "10-4": "4",
    "3-5": "5",
    r"\boxed{-\frac{1}{2}}": "-0.5",
    # fractions, powers, scientific notation, roots
    r"\boxed{\frac{3}{4}}": "0.75",
    r"\boxed{\dfrac{3}{4}}": "0.75",
    r"\boxed{\tfrac34}": "0.75",
    r"\boxed{\frac{1{,}000}{8}}": "125",
    r"\boxed{2\frac{1}{2}}": "2.5",
    r"\boxed{\left(\frac{1}{2}\right)}": "0.5",
    "3/4": "0.75",
    "2 1/2 cups": "2.5",
    "on 12/25/2024": "2024",
    "10/0": "0",
    "60 miles / 2 hours = 30 miles/hour": "30",
    r"\boxed{2^{10}}": "1024",
    "2^3": "8",
    "10\u00b2": "100",
    r"\boxed{1.2 \times 10^{3}}": "1200",
    r"1.5\cdot10^{-2}": "0.015",
    "1.5 x 10^-2": "0.015",
    "3 \u00d7 10\u2074": "30000",
    "1e3": "1000",
    "1.5E-2": "0.015",
    r"\boxed{\sqrt{16}}": "4",
    r"\boxed{3\sqrt{4}}": "6",
    r"\boxed{\sqrt{2} \approx 1.414}": "1.414",
    r"\boxed{5\sqrt{2}}": None,
    r"The area is 4\pi, so \boxed{4\pi}": None,
    # equations, subscripts, names
    "x = 5": "5",
    "x_1 = 5": "5",
    r"\boxed{x_{12} = 5}": "5",
    r"\boxed{x = 5}": "5",
    "so x2": "2",
    r"\approx18": "18",
    r"\log_2 8": "8",
    # the mark and what follows it
    "2 + 16 = 18\n#### 18": "18",
    "#### 18\nThat took 3 steps.": "18",
    "#### 18. That took 3 steps.": "18",
    "#### 2 + 16 = 18": "18",
    "#### 2 + 16 = 18 apples. That took 3 steps.": "18",
    "#### $2.50 * 4 = $10": "10",
    "#### 10% of 180 = 18": "18",
    "#### 18 (20 - 2 = 18)": "18",
    "#### 18 of 20": "18",
    "#### 18 - 20": "18",
    "#### 18, since 9 * 2 = 18, in 5 steps": "18",
    "#### $18 for 3 of them": "18",
    "#### **-18** in 3 steps": "-18",
    "####18": "18",
    "#### 18\n\n### Note\nAll 4 agree.": "18",
    "#### 3. Add them up\nThe sum is 18.": "18",
    "#### 3) Add them up\n\nThe sum is 18": "18",
    "#### Step 3: add them up\nThe sum is 18.": "18",
    "#### Final answer\n18": "18",
    r"#### 18 is \boxed{19}": "19",
    # the phrase and what follows it
    "The answer is 18. She has 3 friends.": "18",
    "The answer is: 18 (in 3 steps)": "18",
    "The final answer is $18$, after 3 steps.": "18",
    "**Answer:** 18 apples in 3 bags": "18",
    "Answer: -1,234.5 (see step 2)": "-1234.5",
    "The answer is x = 5 for all 3.": "5",
    "The answer is 5 + 3 = 8. That took 2 steps.": "8",
    "The answer is 2 * 9": "9",
    "The answer is 1. No: the answer is 18, not 2": "18",
    "The answer is not 5 but 7": "7",
    "The answer is\n18\nin 3 steps": "18",
    # boxes
    r"\boxed {42} and not 7": "42",
    r"\fbox{42} and not 7": "42",
    r"\boxed{1} then \boxed{2}": "2",
    r"\boxed{none} 9": "9",
    r"\boxed{4": "4",
    "no number": None,
    "": None,
}


@pytest.mark.parametrize("text", READ, ids=ascii)
def test_each_form_of_an_answer_gives_its_number(text):
    expected = READ[text]
    assert numeric_answer(text) == (None if expected is None else Decimal(expected))


UNITS = [
    "",
    "%",
    r"\%",
    " m^2",
    " m\u00b2",
    r"\text{ m}^2",
    r"\,\mathrm{cm}^{3}",
    " km/h",
    " dollars",
    r"^\circ",
    " m2",
    r"\text{ of 3}",
]
FRAMES = [
    "{}",
    "#### {}\nin 7 steps",
    "\\boxed{{{}}} is the 7th",
    "The answer is {}. It took 7 steps.",
    "7 + 7 = {}.",
    "$x = {}$",
]


@given(
    st.integers(-(10**9), 10**9),
    st.integers(0, 99),
    st.sampled_from(UNITS),
    st.sampled_from(FRAMES),
    st.booleans(),
)
def test_a_number_is_read_in_every_frame_with_every_unit(number, cents, unit, frame, separated):
    written = f"{number:,}" if separated else str(number)
    text = frame.format(f"{written}.{cents:02}{unit}")
    sign = "-" if number < 0 else ""
    assert same_answer(text, f"{sign}{abs(number)}.{cents:02}"), text


@given(
    st.integers(-999, 999),
    st.integers(1, 999),
    st.sampled_from([r"\frac{{{}}}{{{}}}", "{}/{}", r"\boxed{{\dfrac{{{}}}{{{}}}}}"]),
)
def test_fractions_are_computed(numerator, denominator, form):
    assert numeric_answer(form.format(numerator, denominator)) == Fraction(numerator, denominator)


@given(st.text(alphabet=r"0123456789.,-+*/^_={}()[]\$ %#mx\n:") | st.text())
def test_no_text_breaks_the_reader(text):
    for framed in (
        text,
        f"\\boxed{{{text}",
        f"\\boxed{{{text}}}",
        f"#### {text}",
        f"answer is {text}",
        f"1{text}",
    ):
        value = numeric_answer(framed)
        str(value)
        same_answer(framed, "18")


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [*"1.,-_^{}\\$ a/x*", "1,", "-.", "{}", "^{", "_{", "\\text{", "\\boxed{", "\\frac",
     "\\frac{1}", "1 ", "1/", "#### ", "#### 1+", "answer is ", "1^", "1 x 10^", "a1",
     "\\sqrt", "1\\sqrt{", "\u00b2", "\\times", "=1", "\\text{a}^"],
)  # fmt: skip
def test_a_long_answer_is_read_in_seconds(piece):
    began = time.process_time()
    for text in (
        piece * (300_000 // len(piece)),
        "\\boxed{" + piece * (300_000 // len(piece)) + "}",
    ):
        numeric_answer(text)
    assert time.process_time() - began < 5


def test_worked_solutions_end_in_their_gold_number():
    for gold, shown in (("18", "18"), ("-3", "-3"), ("1234", "1,234"), ("2.5", "2.50")):
        solution = (
            f"She eats 3 * 4 = <<3*4=12>>12.\nSo 1/2 of it is <<12/2=6>>6, or 50%.\n#### {shown}"
        )
        assert gold_number(solution) == shown.replace(",", "")
        assert same_answer(solution, gold)
