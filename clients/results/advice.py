"""What each outcome means and what to do about it, in one line each: for the report and the terminal."""

from clients.records import Outcome

ADVICE = {
    Outcome.OK: "Answered in full.",
    Outcome.TRUNCATED: "Cut off at the token limit, the answer had begun: raise max_tokens if the end matters.",
    Outcome.TRUNCATED_IN_REASONING: "Used up the token limit while thinking, no answer: raise max_tokens.",
    Outcome.FILTERED: "Withheld by a content filter or declined by the model: reword the prompt or accept it.",
    Outcome.SCHEMA_INVALID: "Answered, but not as the row's JSON schema asks: simplify the schema or raise max_tokens.",
    Outcome.EMPTY: "Finished with neither text nor tool call: check the prompt and the chat template.",
    Outcome.REJECTED: "The server says it can never work: mend the row as the reason says.",
    Outcome.FAILED: "No answer, attempts used up or the server lacks something: run again, finished rows are kept.",
    Outcome.INVALID: "Never sent, the input row is malformed: mend the line that the reason names.",
}
