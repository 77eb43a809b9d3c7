import time, sys, json
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
print(jax.__version__, jax.devices())
from qwen35_jax.model import Qwen35
from qwen35_jax.presets import PRESETS
from qwen35_jax.state import DecoderState
from qwen35_jax.inference.engine import Engine
from qwen35_jax.inference.sampling import SamplingParams
from qwen35_jax.ops.linear_cross_entropy import linear_cross_entropy
def note(*a): print(*a, flush=True)
cfg=PRESETS["tiny"]
model=nnx.jit(lambda: Qwen35(cfg,dtype="float32",rngs=nnx.Rngs(0)))()
g,w=nnx.split(model)
w=jax.tree.map(lambda x: x+0.05*jax.random.normal(jax.random.key(int(x.size)),x.shape,x.dtype),w)
ids=np.random.default_rng(0).integers(0,512,(2,200)); seg=np.repeat([[1,2,0]],[90,100,10],axis=1).repeat(2,0)
def logits(w,ids,seg):
    m=nnx.merge(g,w); h,_=m.forward(ids,seg); return m.head_logits(h)
def loss(w,ids,seg):
    m=nnx.merge(g,w,copy=True); h,_=m.forward(ids,seg)
    return linear_cross_entropy(h,m.head_weight(),jnp.roll(ids,-1,1),(seg>0).astype(jnp.float32),chunk_tokens=64)/200
with jax.default_matmul_precision("highest"):
    a=jax.jit(logits)(w,jnp.asarray(ids),jnp.asarray(seg)); ga=jax.jit(jax.grad(loss))(w,jnp.asarray(ids),jnp.asarray(seg))
    cpu=jax.devices("cpu")[0]
    wc=jax.device_put(w,cpu)
    with jax.default_device(cpu):
        b=jax.jit(logits)(wc,jnp.asarray(ids),jnp.asarray(seg)); gb=jax.jit(jax.grad(loss))(wc,jnp.asarray(ids),jnp.asarray(seg))
    real=seg>0
    note("logits gpu-cpu", np.abs(np.asarray(a)-np.asarray(b))[real].max(), "scale", np.abs(np.asarray(b))[real].max())
    rel=[float(np.linalg.norm(np.asarray(x)-np.asarray(y))/max(np.linalg.norm(np.asarray(y)),1e-9)) for x,y in zip(jax.tree.leaves(ga),jax.tree.leaves(gb))]
    note("gradients gpu-cpu, worst relative", max(rel))
    st=DecoderState.empty(cfg.text,2,256,jnp.float32); outs=[]
    f=jax.jit(lambda w,i,s,st: nnx.merge(g,w).forward(i,s,state=st))
    for x,y in ((0,64),(64,65),(65,200)):
        h,st=f(w,jnp.asarray(ids[:,x:y]),jnp.asarray(seg[:,x:y]),st); outs.append(h)
    whole=jax.jit(lambda w,i,s: nnx.merge(g,w).forward(i,s)[0])(w,jnp.asarray(ids),jnp.asarray(seg))
    note("calls with a state against one call", np.abs(np.concatenate(outs,1)-np.asarray(whole))[real].max())
cfg=PRESETS["2b"]
t=time.time()
model=nnx.jit(lambda: Qwen35(cfg,dtype=jnp.bfloat16,rngs=nnx.Rngs(0)))()
jax.block_until_ready(nnx.state(model)); note("2B made", time.time()-t)
g,w=nnx.split(model)
ids=jnp.asarray(np.random.default_rng(0).integers(0,248000,(1,4096)))
pre=jax.jit(lambda w,i: nnx.merge(g,w).forward(i,jnp.ones_like(i),state=DecoderState.empty(cfg.text,1,4352,jnp.bfloat16))[0][:,-1])
t=time.time(); jax.block_until_ready(pre(w,ids)); note("prefill compile+run", time.time()-t)
ts=[]
for _ in range(5):
    t=time.time(); jax.block_until_ready(pre(w,ids)); ts.append(time.time()-t)
note("prefill 4096 tokens, s", sorted(ts)[2])
for rule in ("chunked","associative"):
    m2=nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: Qwen35(cfg,dtype=jnp.bfloat16,delta_rule=rule,rngs=nnx.Rngs(0)))),w)
    g2=nnx.graphdef(m2)
    def loss2(w,ids):
        m=nnx.merge(g2,w,copy=True); h,_=m.forward(ids,remat="block")
        return linear_cross_entropy(h,m.head_weight(),jnp.roll(ids,-1,1),jnp.ones(ids.shape),chunk_tokens=512)/4096
    step=jax.jit(jax.value_and_grad(loss2))
    t=time.time(); r=jax.block_until_ready(step(w,ids)); note(rule,"grad compile+run",time.time()-t, float(r[0]))
    ts=[]
    for _ in range(3):
        t=time.time(); jax.block_until_ready(step(w,ids)); ts.append(time.time()-t)
    note(rule,"forward+backward 4096 tokens, s", sorted(ts)[1]); del r
class Tok:
    eos_token_ids=(248046,248044); pad_token_id=248044
    def decode(self,ids,skip_special_tokens=True): return ""
    def token_id(self,t): return {"<think>":248068,"</think>":248069}[t]
eng=Engine(model,Tok(),max_batch=16)
prompts=[np.random.default_rng(i).integers(0,248000,100+10*i).tolist() for i in range(16)]
for n in (64,256):
    t=time.time(); c=eng.generate(prompts,sampling=SamplingParams(),max_new_tokens=n); d=time.time()-t
    note("generate 16 x",n,"tokens:",sum(len(x.token_ids) for x in c)/d,"tokens/s incl. compile",d)
t=time.time(); c=eng.generate(prompts,sampling=SamplingParams(),max_new_tokens=256); d=time.time()-t
note("again: tokens/s", sum(len(x.token_ids) for x in c)/d)
