from jobs.report.text import count, decimal, duration, elide, power, rough


def test_numbers_are_worded_for_people():
    assert [duration(s) for s in (0.0312, 9.96, 119.94, 120, 3725)] == [
        "0.03 s", "10.0 s", "119.9 s", "2 min 00 s", "1 h 02 min",
    ]  # fmt: skip
    assert [decimal(x) for x in (0.0, -1.23456, float("-inf"))] == ["0", "−1.235", "−∞"]
    assert [decimal(x) for x in (1.25e-7, 3.4e12, -5e-12)] == ["1.25e−7", "3.4e12", "−5e−12"]
    assert [rough(x) for x in (0.0, 0.01, 1.0, 84.3, 1234.0, 1e-7, -0.5)] == [
        "0", "0.010", "1.0", "84", "1,234", "1.0e−7", "−0.50",
    ]  # fmt: skip
    assert [power(2, 5), power(10, -12)] == ["2⁵", "10⁻¹²"]
    assert count(1234567) == "1,234,567"


def test_the_middle_of_a_long_text_is_left_out():
    assert elide("abcdefghij", 5) == "ab…ij"
    assert elide("abcde", 5) == "abcde"
