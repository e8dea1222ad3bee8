"""Tests of check.py: what it must not let pass. They need neither root nor a machine."""

import unittest

import check


def parse(text):
    return check.parse(text.splitlines())


class Patterns(unittest.TestCase):
    def matches(self, shown, printed, about=False):
        return check.pattern(shown, about).fullmatch(printed) is not None

    def test_numbers_count_unless_they_are_examples(self):
        self.assertFalse(self.matches("adopted: 1\n", "adopted: 2\n"))
        self.assertTrue(self.matches("adopted: 1\n", "adopted: 23\n", about=True))
        self.assertFalse(self.matches("adopted: 1\n", "adopted: \n", about=True))

    def test_three_dots_are_any_characters_of_a_line(self):
        self.assertTrue(self.matches("a ... z\n", "a b (c) z\n"))
        self.assertFalse(self.matches("a ... z\n", "a\nz\n"))

    def test_a_line_of_three_dots_is_any_lines(self):
        self.assertTrue(self.matches("a\n...\nz\n", "a\nz\n"))
        self.assertTrue(self.matches("a\n...\nz\n", "a\nb\nc\nz\n"))
        self.assertFalse(self.matches("a\n...\nz\n", "a\nb\n"))

    def test_more_or_less_than_is_shown_does_not_match(self):
        self.assertFalse(self.matches("a\n", "a\nb\n"))
        self.assertFalse(self.matches("a\nb\n", "a\n"))
        self.assertTrue(self.matches("", ""))


class Guides(unittest.TestCase):
    def test_commands_that_belong_to_no_recipe(self):
        with self.assertRaises(check.Wrong):
            parse("```sh\nls\n```\n")
        with self.assertRaises(check.Wrong):
            parse("<!-- recipe: a -->\n```sh\nls\n```\n# Next\n```sh\nls\n```\n")

    def test_a_file_that_is_shown_differently(self):
        with self.assertRaises(check.Wrong):
            check.check_files([(1, __file__, "other\n")])

    def test_a_symptom_that_nobody_has_seen(self):
        recipes, _, rows = parse("<!-- recipe: a -->\n```sh\nls\n```\n\n| `no ... there` | x |\n")
        recipes[0].printed = "there is no file there\n"
        check.check_rows(rows, recipes)
        recipes[0].printed = "there is a file there\n"
        with self.assertRaises(check.Wrong):
            check.check_rows(rows, recipes)

    def test_a_command_that_fails(self):
        block = check.Block(1, "sh", "false\n")
        with self.assertRaises(check.Wrong):
            check.check_block(block, None, "[this failed with 1: false]\n")
        check.check_block(block, None, "")


if __name__ == "__main__":
    unittest.main()
