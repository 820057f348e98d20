"""DSPy: predictions by schemas, whole, streamed, several at once."""

import asyncio
import sys

import dspy

# Schemas are used where litellm knows of a model that it takes them: by this name.
LM = dspy.LM(
    "openai/gpt-4o-mini", api_base=sys.argv[1] + "/v1", api_key="none", max_tokens=300, temperature=0, cache=False
)


class Mood(dspy.Signature):
    """Say whether the person feels well."""

    sentence: str = dspy.InputField()
    well: bool = dspy.OutputField()


async def main() -> None:
    dspy.configure(lm=LM, adapter=dspy.JSONAdapter())
    assert LM("What is the capital of France?")
    predict, asked = dspy.Predict(Mood), {"sentence": "Anna smiles."}
    said = predict(**asked).well
    assert isinstance(said, bool)
    assert (await predict.acall(**asked)).well == said
    assert [one.well for one in predict.batch([dspy.Example(**asked).with_inputs("sentence")] * 4)] == [said] * 4
    seen = [piece async for piece in dspy.streamify(predict)(**asked)]
    assert isinstance(seen[-1], dspy.Prediction) and seen[-1].well == said
    assert LM.history[-1]["usage"]["completion_tokens"]


asyncio.run(main())
