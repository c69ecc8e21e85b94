//! `DynamoDB`'s condition and update expressions, as far as the measured functions use them.
//!
//! An unsupported expression is an error, so that no function is measured with calls that `DynamoDB`
//! would execute differently.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// An item or a set of values: name → `{"S": …}`, `{"N": …}`, `{"B": …}` and so on.
pub type Item = Map<String, Value>;

/// The `#names` and `:values` that an expression refers to.
#[derive(Clone, Copy)]
pub struct Bindings<'a> {
    /// `ExpressionAttributeNames`
    pub names: Option<&'a Map<String, Value>>,
    /// `ExpressionAttributeValues`
    pub values: Option<&'a Item>,
}

impl<'a> Bindings<'a> {
    fn name(&self, token: &'a str) -> Result<&'a str> {
        if !token.starts_with('#') {
            return Ok(token);
        }
        let name = self.names.and_then(|names| names.get(token)).and_then(Value::as_str);
        name.with_context(|| format!("{token} is not in ExpressionAttributeNames"))
    }

    fn value(&self, token: &str) -> Result<&'a Value> {
        let value = self.values.and_then(|values| values.get(token));
        value.with_context(|| format!("{token} is not in ExpressionAttributeValues"))
    }
}

/// Whether a condition holds for an item, which is empty if there is none.
pub fn holds(condition: &str, item: &Item, bindings: Bindings<'_>) -> Result<bool> {
    let mut parser = Parser { tokens: tokens(condition)?, at: 0, item, bindings };
    let verdict = parser.or()?;
    if parser.peek().is_some() {
        bail!("unsupported condition {condition:?}");
    }
    Ok(verdict)
}

/// Applies an update expression. Returns the names of the changed attributes.
pub fn update(expression: &str, item: &mut Item, bindings: Bindings<'_>) -> Result<Vec<String>> {
    let before = item.clone();
    let mut parser = Parser { tokens: tokens(expression)?, at: 0, item: &before, bindings };
    let mut changed = Vec::new();
    while let Some(clause) = parser.next() {
        loop {
            let token = parser.next().context("the update expression is incomplete")?;
            let name = bindings.name(token)?;
            match clause {
                "SET" => {
                    parser.expect("=")?;
                    let value = parser.sum()?;
                    item.insert(name.to_owned(), value);
                }
                "ADD" => {
                    let token = parser.next().context("ADD without a value")?;
                    let sum = number(before.get(name)).unwrap_or(0.0) + number(Some(bindings.value(token)?))?;
                    item.insert(name.to_owned(), number_value(sum));
                }
                "REMOVE" => {
                    item.remove(name);
                }
                other => bail!("unsupported update clause {other:?}"),
            }
            changed.push(name.to_owned());
            if parser.peek() != Some(",") {
                break;
            }
            parser.next();
        }
    }
    Ok(changed)
}

fn tokens(text: &str) -> Result<Vec<&str>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '#' | ':' | '.' | '-');
        let length = match first {
            '<' | '>' => 1 + usize::from(rest[1..].starts_with(['=', '>'])),
            '=' | '(' | ')' | ',' | '+' => 1,
            '-' if rest[1..].starts_with(' ') => 1,
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => bail!("unsupported expression {text:?}"),
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    item: &'a Item,
    bindings: Bindings<'a>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).copied()
    }

    fn next(&mut self) -> Option<&'a str> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let token = self.next();
        if token == Some(expected) { Ok(()) } else { bail!("expected {expected:?}, found {token:?}") }
    }

    fn consume(&mut self, token: &str) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<bool> {
        let mut verdict = self.and()?;
        while self.consume("OR") {
            verdict |= self.and()?;
        }
        Ok(verdict)
    }

    fn and(&mut self) -> Result<bool> {
        let mut verdict = self.not()?;
        while self.consume("AND") {
            verdict &= self.not()?;
        }
        Ok(verdict)
    }

    fn not(&mut self) -> Result<bool> {
        if self.consume("NOT") { Ok(!self.not()?) } else { self.primary() }
    }

    fn primary(&mut self) -> Result<bool> {
        if self.consume("(") {
            let verdict = self.or()?;
            self.expect(")")?;
            return Ok(verdict);
        }
        for (function, wanted) in [("attribute_exists", true), ("attribute_not_exists", false)] {
            if self.consume(function) {
                self.expect("(")?;
                let name = self.next().context("a function without a name")?;
                self.expect(")")?;
                return Ok(self.item.contains_key(self.bindings.name(name)?) == wanted);
            }
        }
        let left = self.operand()?;
        let comparator = self.next().context("the condition is incomplete")?;
        let right = self.operand()?;
        compare(left.as_ref(), comparator, right.as_ref())
    }

    /// The value of an attribute, if the item has it, or a bound value.
    fn operand(&mut self) -> Result<Option<Value>> {
        let token = self.next().context("the expression is incomplete")?;
        if token == "if_not_exists" {
            self.expect("(")?;
            let attribute = self.operand()?;
            self.expect(",")?;
            let otherwise = self.operand()?;
            self.expect(")")?;
            return Ok(attribute.or(otherwise));
        }
        if token.starts_with(':') {
            return self.bindings.value(token).map(|value| Some(value.clone()));
        }
        Ok(self.item.get(self.bindings.name(token)?).cloned())
    }

    fn sum(&mut self) -> Result<Value> {
        let first = self.operand()?.context("SET reads a missing attribute")?;
        let sign = match self.peek() {
            Some("+") => 1.0,
            Some("-") => -1.0,
            _ => return Ok(first),
        };
        self.next();
        let second = self.operand()?;
        Ok(number_value(number(Some(&first))? + sign * number(second.as_ref())?))
    }
}

fn compare(left: Option<&Value>, comparator: &str, right: Option<&Value>) -> Result<bool> {
    // A comparison with a missing attribute does not hold.
    let (Some(left), Some(right)) = (left, right) else { return Ok(false) };
    let order = match (&left["N"], &right["N"]) {
        (Value::String(_), Value::String(_)) => number(Some(left))?.partial_cmp(&number(Some(right))?),
        _ => match (&left["S"], &right["S"]) {
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            _ if left == right => Some(std::cmp::Ordering::Equal),
            _ => None,
        },
    };
    Ok(match comparator {
        "=" => order.is_some_and(std::cmp::Ordering::is_eq),
        "<>" => !order.is_some_and(std::cmp::Ordering::is_eq),
        "<" => order.is_some_and(std::cmp::Ordering::is_lt),
        "<=" => order.is_some_and(std::cmp::Ordering::is_le),
        ">" => order.is_some_and(std::cmp::Ordering::is_gt),
        ">=" => order.is_some_and(std::cmp::Ordering::is_ge),
        other => bail!("unsupported comparator {other:?}"),
    })
}

/// Doubles are precise enough: the largest numbers are epoch milliseconds.
fn number(value: Option<&Value>) -> Result<f64> {
    let text = value.and_then(|value| value["N"].as_str()).context("not a number")?;
    text.parse().with_context(|| format!("{text:?} is not a number"))
}

fn number_value(number: f64) -> Value {
    serde_json::json!({ "N": number.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: &Value) -> Item {
        value.as_object().unwrap().clone()
    }

    fn check(condition: &str, item: &Value) -> bool {
        let names = object(&json!({ "#s": "state" }));
        let values = object(&json!({ ":now": { "N": "100" }, ":open": { "S": "open" }, ":hash": { "B": "AQI=" } }));
        holds(condition, &object(item), Bindings { names: Some(&names), values: Some(&values) }).unwrap()
    }

    #[test]
    fn conditions_hold_as_in_dynamodb() {
        let open =
            json!({ "id": { "S": "1" }, "state": { "S": "open" }, "until": { "N": "99" }, "hash": { "B": "AQI=" } });
        let none = json!({});
        assert!(check("attribute_not_exists(id) OR until <= :now", &none));
        assert!(check("attribute_not_exists(id) OR until <= :now", &open));
        assert!(!check("until > :now", &open));
        assert!(check("#s = :open AND hash = :hash", &open));
        // Numbers are compared as numbers, not as text.
        assert!(check("(#s = :open AND attribute_exists(until) AND until < :now)", &open));
        assert!(!check("NOT #s = :open", &open));
        assert!(!check("until < :now", &none), "a missing attribute is not less than any value");
    }

    #[test]
    fn updates_read_the_old_item() {
        let mut item = object(&json!({ "n": { "N": "4" } }));
        let values = object(&json!({ ":one": { "N": "1" }, ":x": { "S": "x" } }));
        let bindings = Bindings { names: None, values: Some(&values) };
        let changed = update("SET n = n + :one, a = :x, b = if_not_exists(b, :x) ADD used :one", &mut item, bindings);
        assert_eq!(changed.unwrap(), ["n", "a", "b", "used"]);
        let expected = json!({ "n": { "N": "5" }, "a": { "S": "x" }, "b": { "S": "x" }, "used": { "N": "1" } });
        assert_eq!(Value::Object(item), expected);
    }

    #[test]
    fn unsupported_expressions_are_errors() {
        let bindings = Bindings { names: None, values: None };
        assert!(holds("begins_with(a, :b)", &Item::new(), bindings).is_err());
        assert!(holds("a = :unknown", &Item::new(), bindings).is_err());
    }
}
