"""Tokenizers small enough to build in a test, with the chat templates of the model families written anew."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

WORDS = "Question : Answer The author wrote it in Lima . Who ? user assistant system Nobody knows [INST] [/INST]"

LLAMA3 = """{{ bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday Date: " + date_string + "\n\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

SMOLLM2 = (
    """{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{%- endif %}"""
    + CHATML
)

QWEN3 = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
    {{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""

QWEN3_THINKING = (
    QWEN3.partition("\n    {%- if enable_thinking")[0].replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
    + "{%- endif %}"
)

DEEPSEEK_R1 = """{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}{%- endif %}
    {%- if message['role'] == 'assistant' %}
        {%- set content = message['content'].split('</think>')[-1] %}
        {{- '<|Assistant|>' + content + '<|end_of_sentence|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\\n' }}{%- endif %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""

PHI = """{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' }}{%- else %}{{- eos_token }}{%- endif %}"""

LLAMA2 = """{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}
    {%- else %}{{- ' ' + message['content'] | trim + ' ' + eos_token }}{%- endif %}
{%- endfor %}"""


def byte_level(
    special: list[str],
    eos: str | None,
    bos: str | None = None,
    add_bos: bool = False,
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be written with it, and ``Ġ`` is a space before a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([WORDS, " ".join(WORDS.split()[::-1])], trainer)
    return _finished(tokenizer, special, eos, bos, add_bos, template)


def sentencepiece(special: list[str], template: str | None = None) -> PreTrainedTokenizerFast:
    """Like Llama-2's: ``▁`` for a space, one put before the first word of any text, BOS by habit."""
    pieces = ["<unk>", "▁", *sorted(set("".join(WORDS.split()) + "abcdefghijklmnopqrstuvwxyz\n/<>|,_ST"))]
    pieces += ["▁The", "The"]
    merges = [("T", "h"), ("Th", "e"), ("▁", "The")]
    pieces.insert(2, "Th")
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _finished(tokenizer, ["<s>", "</s>", *special], "</s>", "<s>", True, template)


def word_level(words: str, eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    """One token a word, and nothing at all for spaces and for what it does not know."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words.split())}))
    known = "|".join(words.split())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"(?:{known})"), "removed", invert=True)
    tokenizer.normalizer = normalizers.Replace(Regex(f"[^{''.join(sorted(set(known) - set('|')))} ]"), "")
    return _finished(tokenizer, ["</s>"], eos, None, False, None)


def _finished(
    tokenizer: Tokenizer, special: list[str], eos: str | None, bos: str | None, add_bos: bool, template: str | None
) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if add_bos and bos:
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, pad_token=eos, chat_template=template
    )
